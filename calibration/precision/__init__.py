"""What may run in 8 bits: ranges, sensitivity, the choice of layers, and the gate."""
