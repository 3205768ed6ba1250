//! The `meshwork` program.

use std::process::ExitCode;

/// Tasks and calls go from thread to thread, and so does what they allocate.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    meshwork::cli::main()
}
