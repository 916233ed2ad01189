"""Where samples come from: tasks made by program, files of chats or texts, a model's own answers and trajectories."""
