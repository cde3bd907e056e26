"""Tests of real processes, on the simulated card or another driver."""
