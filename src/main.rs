//! The `meshwork` program.

use std::process::ExitCode;

/// Tasks and calls go from thread to thread, and so does what they allocate.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    meshwork::cli::main()
}
