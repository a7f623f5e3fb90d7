"""The parts of ``bench.annealing_study``."""
