"""The main job of vcuda on one machine: real CUDA clients in shares of one simulated card."""
