mod damage;
mod disks;
mod fixture;
mod kill;
mod power;
mod recorder;
mod serve;
mod start;
