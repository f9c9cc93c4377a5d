"""Enrolment, tokens, certificates, signatures."""
