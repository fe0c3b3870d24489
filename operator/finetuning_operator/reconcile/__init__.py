"""The pure core: one function a kind turns an object and what is observed into a plan."""
