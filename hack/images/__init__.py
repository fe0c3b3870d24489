"""Building the images of the project: ``python -m hack.images``. Nothing but the standard library is needed."""
