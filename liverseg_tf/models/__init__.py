"""The U-Net, its losses and metrics, and how models are saved and loaded."""
