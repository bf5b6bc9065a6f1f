//! The packages in containers with a real systemd: installed, used, upgraded and removed as an administrator does it.
#![forbid(unsafe_code)]

mod life;
mod packages;
mod scene;
mod session;
