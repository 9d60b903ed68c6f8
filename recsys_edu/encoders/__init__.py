"""History encoders: one interface, one module for each way to fuse a candidate."""
