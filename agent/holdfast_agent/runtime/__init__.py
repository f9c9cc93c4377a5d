"""Composition root of the agent: the only place that wires objects together."""
