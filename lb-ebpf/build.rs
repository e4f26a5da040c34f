//! Tells the linker what the programs need, whoever calls cargo.

fn main() {
    // By default the linker asks LLVM to expand memory copies in order, which also turns every
    // zeroing of a few words into a call of a byte loop: 50 ns each, and thousands of steps for
    // the verifier.
    println!("cargo::rustc-link-arg-bins=--disable-expand-memcpy-in-order");
    println!("cargo::rerun-if-changed=build.rs");
}
