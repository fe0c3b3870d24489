"""The local realiser: plans become processes and folders below one state folder."""
