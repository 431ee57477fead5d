"""tokenmill: from raw images, video and text to a trained, sampling next-token transformer."""
