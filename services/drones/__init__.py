"""The drones service: has drones stand by for packages, and releases them again."""
