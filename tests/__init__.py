"""A package, because a dependency installs one of this name, which spawned tests would import instead."""
