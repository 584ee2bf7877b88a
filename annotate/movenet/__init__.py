"""MoveNet MultiPose: people without a hub."""
