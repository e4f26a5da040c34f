//! Reads of an ELF object what a build is checked for: the symbol names, enough to see that no panic is
//! left in it, and whether it needs libraries beside it.

use anyhow::{Context, Result, anyhow};

/// The names of the functions that a 64-bit little-endian ELF object defines or wants.
pub(crate) fn symbols(object: &[u8]) -> Result<Vec<String>> {
    check(object)?;
    let sections = usize_at(object, 0x28, 8)?;
    let (size, count) = (usize_at(object, 0x3a, 2)?, usize_at(object, 0x3c, 2)?);
    let mut names = Vec::new();
    for index in 0..count {
        let header = sections + index * size;
        // SHT_SYMTAB is 2 (System V ABI, chapter 4).
        if usize_at(object, header + 4, 4)? != 2 {
            continue;
        }
        let (start, length) = (
            usize_at(object, header + 24, 8)?,
            usize_at(object, header + 32, 8)?,
        );
        let strings = sections + usize_at(object, header + 40, 4)? * size;
        let strings = usize_at(object, strings + 24, 8)?;
        for symbol in (start..start + length).step_by(24) {
            let name = strings + usize_at(object, symbol, 4)?;
            let text = object
                .get(name..)
                .context("symbol name outside the object")?;
            let end = text
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(text.len());
            names.push(String::from_utf8_lossy(&text[..end]).into_owned());
        }
    }
    Ok(names)
}

/// Whether a 64-bit little-endian ELF program asks for a loader, and so for shared libraries.
pub(crate) fn has_interpreter(program: &[u8]) -> Result<bool> {
    check(program)?;
    let headers = usize_at(program, 0x20, 8)?;
    let (size, count) = (usize_at(program, 0x36, 2)?, usize_at(program, 0x38, 2)?);
    for index in 0..count {
        // PT_INTERP is 3 (System V ABI, chapter 5).
        if usize_at(program, headers + index * size, 4)? == 3 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check(object: &[u8]) -> Result<()> {
    if object.get(..6) == Some(b"\x7fELF\x02\x01") {
        return Ok(());
    }
    Err(anyhow!("not a 64-bit little-endian ELF object"))
}

fn usize_at(object: &[u8], offset: usize, width: usize) -> Result<usize> {
    let bytes = object
        .get(offset..offset + width)
        .context("the ELF object is cut short")?;
    let value = bytes
        .iter()
        .rev()
        .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    usize::try_from(value).context("offset beyond this machine")
}

#[cfg(test)]
mod tests {
    use super::{has_interpreter, symbols};

    #[test]
    fn a_program_of_shared_libraries_is_told_from_one_without() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&own).unwrap(), "tests are linked as usual");
        let loader = "/lib64/ld-linux-x86-64.so.2";
        if let Ok(loader) = std::fs::read(loader) {
            assert!(!has_interpreter(&loader).unwrap(), "the loader has none");
        }
        assert!(has_interpreter(b"#!/bin/sh").is_err());
    }

    #[test]
    fn the_symbols_of_this_very_test_are_read() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(
            symbols(&own)
                .unwrap()
                .iter()
                .any(|name| name.contains("panicking"))
        );
    }

    #[test]
    fn what_is_no_elf_or_cut_short_is_an_error_and_no_panic() {
        assert!(symbols(b"#!/bin/sh").is_err());
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(symbols(&own[..200]).is_err());
    }
}
