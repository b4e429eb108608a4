"""Model repositories for NVIDIA Triton: written, checked, and the model in them."""
