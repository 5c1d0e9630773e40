"""What a run is asked to do: configs, their fields and presets, the options they are read from."""
