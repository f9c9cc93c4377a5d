"""Tests, in folders by the question they answer; `tests.support` is what they share."""
