"""Notifications: one message about one job, to one receiver, with nothing of the receiver's address in any log."""
