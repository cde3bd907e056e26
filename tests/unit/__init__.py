"""Tests of one module each: no process of ours, no driver."""
