"""What commands do on a cluster; `finetuning_cli.commands` does the same for a state folder of this machine."""
