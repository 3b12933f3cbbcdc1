"""Measurements: speed, precision, several processes, faults; the figures in docs come from here."""
