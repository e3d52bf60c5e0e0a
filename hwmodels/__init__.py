"""Cost models of devices: layers as shapes in, latency, energy and size out. Never imports torch."""
