mod crowd;
mod lives;
mod world;
