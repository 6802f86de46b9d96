"""The delivery service: has drones hand packages over, which nothing can undo."""
