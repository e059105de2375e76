"""The command line `defemb`: the same functions, without a Trainer."""
