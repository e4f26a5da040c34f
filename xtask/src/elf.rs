//! Reads of an ELF object what a build is checked for: the symbol names, enough to see that no panic is
//! left in it, and whether it needs libraries beside it. Leaves out what only debuggers read.

use anyhow::{Context, Result, anyhow, ensure};

/// Size of a section's header, and of the file's own (System V ABI, chapter 4).
const HEADER: usize = 64;

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

/// A relocatable object without DWARF, which is four fifths of it. What the kernel and its tools show of a
/// program's source comes from `.BTF` and `.BTF.ext`, whose relocations nobody who loads a program reads. The headers
/// of what is left out stay, empty: so every number of a section means what it meant.
pub(crate) fn without_debug(object: &[u8]) -> Result<Vec<u8>> {
    check(object)?;
    ensure!(
        usize_at(object, 0x38, 2)? == 0 && usize_at(object, 0x3a, 2)? == HEADER,
        "not a relocatable object"
    );
    let (headers, count) = (usize_at(object, 0x28, 8)?, usize_at(object, 0x3c, 2)?);
    let table = object.get(headers..headers + count * HEADER);
    let mut table = table.context("no section headers")?.to_vec();
    let names = headers + usize_at(object, 0x3e, 2)? * HEADER;
    let names = usize_at(object, names + 24, 8)?;
    let mut out = object.get(..HEADER).context("no header")?.to_vec();
    for header in table.chunks_exact_mut(HEADER) {
        // SHT_NULL: the one that means none, and what was left out before.
        if usize_at(header, 4, 4)? == 0 {
            continue;
        }
        let name = object.get(names + usize_at(header, 0, 4)?..);
        let name = name.context("section name outside the object")?;
        if [&b".debug_"[..], b".rel.debug_", b".rel.BTF"]
            .iter()
            .any(|left_out| name.starts_with(left_out))
        {
            header.fill(0);
            continue;
        }
        let (start, length) = (usize_at(header, 24, 8)?, usize_at(header, 32, 8)?);
        out.resize(out.len().next_multiple_of(16), 0);
        header[24..32].copy_from_slice(&out.len().to_le_bytes());
        // SHT_NOBITS is 8: it has a length and no content.
        if usize_at(header, 4, 4)? != 8 {
            let content = object.get(start..start + length);
            out.extend_from_slice(content.context("section outside the object")?);
        }
    }
    out.resize(out.len().next_multiple_of(16), 0);
    let place = out.len().to_le_bytes();
    out[0x28..0x30].copy_from_slice(&place);
    out.append(&mut table);
    Ok(out)
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
    use super::{HEADER, has_interpreter, symbols, without_debug};

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

    /// An object of these sections, after the one that means none; the last holds the names.
    fn object(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut names = vec![0];
        let mut content = Vec::new();
        let mut headers = vec![[0; HEADER]];
        for (index, (name, data)) in sections.iter().enumerate() {
            let mut header = [0; HEADER];
            header[..4].copy_from_slice(&u32::try_from(names.len()).unwrap().to_le_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            let data = if index + 1 == sections.len() {
                names.as_slice()
            } else {
                data
            };
            // SHT_PROGBITS.
            header[4] = 1;
            header[24..32].copy_from_slice(&(HEADER + content.len()).to_le_bytes());
            header[32..40].copy_from_slice(&data.len().to_le_bytes());
            content.extend_from_slice(data);
            headers.push(header);
        }
        let mut object = vec![0; HEADER];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[0x28..0x30].copy_from_slice(&(HEADER + content.len()).to_le_bytes());
        object[0x3a] = 64;
        object[0x3c] = u8::try_from(headers.len()).unwrap();
        object[0x3e] = object[0x3c] - 1;
        object.append(&mut content);
        object.extend(headers.concat());
        object
    }

    #[test]
    fn an_object_keeps_all_but_what_debuggers_read() {
        let object = object(&[
            ("classifier", b"instructions"),
            (".debug_info", &[7; 1_000]),
            (".rel.debug_info", &[7; 1_000]),
            (".BTF", b"types"),
            (".BTF.ext", b"lines"),
            (".rel.BTF.ext", &[7; 1_000]),
            (".strtab", b""),
        ]);
        let small = without_debug(&object).unwrap();
        let section = |object: &[u8], index: usize| {
            let at = |at: usize| {
                usize::try_from(u64::from_le_bytes(object[at..][..8].try_into().unwrap())).unwrap()
            };
            let header = at(0x28) + index * HEADER;
            object[at(header + 24)..][..at(header + 32)].to_vec()
        };
        assert!(object.len() > 3_000 && small.len() < 1_000);
        assert_eq!(small[0x3c], object[0x3c], "their numbers stay");
        for index in [1, 4, 5, 7] {
            assert_eq!(section(&small, index), section(&object, index));
        }
        for index in [2, 3, 6] {
            assert!(section(&small, index).is_empty());
        }
        assert!(
            without_debug(&small).unwrap() == small,
            "nothing more to do"
        );
    }

    #[test]
    fn what_is_no_elf_or_cut_short_is_an_error_and_no_panic() {
        assert!(symbols(b"#!/bin/sh").is_err());
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(symbols(&own[..200]).is_err());
        assert!(without_debug(b"#!/bin/sh").is_err());
        let object = object(&[(".text", b"x"), (".strtab", b"")]);
        assert!(without_debug(&object[..object.len() - 1]).is_err());
    }
}
