"""The latent wire: what crosses between the parties, without torch and without sockets."""
