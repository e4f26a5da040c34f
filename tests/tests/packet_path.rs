//! The packet path in the kernel: the object loads, and packets pushed through its programs come
//! out as the host's core says.

use anyhow::Result;
use lb_tests::object::Object;

#[test]
fn every_program_of_the_packet_path_passes_the_verifier() -> Result<()> {
    lb_lab::require_root();
    let mut object = Object::load(1024)?;
    for program in lb_tests::object::PROGRAMS {
        let count = object.verified_instructions(program)?;
        println!("{program}: {count} instructions verified");
    }
    Ok(())
}
