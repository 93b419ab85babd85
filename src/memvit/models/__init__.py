"""The model, in pure PyTorch: it knows nothing of video files, training or the command line."""
