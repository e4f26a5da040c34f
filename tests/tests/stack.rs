//! The programs' stacks, by the arithmetic of the kernels before 6.7: there every function of a
//! chain of calls takes its stack rounded up to 32 bytes, where later ones round to 16. What loads
//! here may be refused there, so the objects are measured and not tried.

use anyhow::{Context, Result, ensure};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What a chain of calls may take: `MAX_BPF_STACK`.
const LIMIT: usize = 512;
/// What `check_max_stack_depth` rounded a function's stack up to.
const ROUNDED_TO: usize = 32;
/// The frame pointer.
const FRAME: u8 = 10;
/// `BPF_PSEUDO_CALL`: a call of another function of the program.
const PSEUDO_CALL: u8 = 1;

// Instruction codes of <linux/bpf.h>.
const CALL: u8 = 0x85;
const MOVE: u8 = 0xbf;
const ADD_NUMBER: u8 = 0x07;
const CLASS: u8 = 0x07;
const LOAD: u8 = 0x01;
const STORE_NUMBER: u8 = 0x02;
const STORE: u8 = 0x03;

/// One function: its stack in bytes and the functions it calls, by their first instruction.
#[derive(Debug, Default)]
struct Function {
    stack: usize,
    calls: BTreeSet<usize>,
}

/// The functions of a linked program, by their first instruction.
fn functions(program: &[bpf_insn]) -> Result<BTreeMap<usize, Function>> {
    let calls = |at: usize, instruction: &bpf_insn| {
        (instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL)
            .then(|| usize::try_from(i64::try_from(at).ok()? + 1 + i64::from(instruction.imm)).ok())
            .flatten()
    };
    let starts = program
        .iter()
        .enumerate()
        .filter_map(|(at, i)| calls(at, i));
    let mut functions: BTreeMap<usize, Function> = starts
        .chain([0])
        .map(|at| (at, Function::default()))
        .collect();
    // Registers that hold the frame pointer, to be lowered by the next instruction.
    let mut copies = BTreeSet::new();
    for (at, instruction) in program.iter().enumerate() {
        let (_, function) = functions
            .range_mut(..=at)
            .next_back()
            .context("an instruction before the first function")?;
        function.calls.extend(calls(at, instruction));
        let (to, from) = (instruction.dst_reg(), instruction.src_reg());
        let lowest = match instruction.code {
            MOVE if from == FRAME => {
                copies.insert(to);
                continue;
            }
            ADD_NUMBER if copies.remove(&to) => instruction.imm,
            code if code & CLASS == LOAD && from == FRAME => instruction.off.into(),
            code if matches!(code & CLASS, STORE | STORE_NUMBER) && to == FRAME => {
                instruction.off.into()
            }
            _ => continue,
        };
        let depth = usize::try_from(-lowest).context("an access above the frame")?;
        function.stack = function.stack.max(depth);
    }
    Ok(functions)
}

/// The deepest chain of calls from `start`, with the stacks of its functions.
fn deepest(functions: &BTreeMap<usize, Function>, start: usize) -> (usize, Vec<usize>) {
    let Some(function) = functions.get(&start) else {
        return (0, Vec::new());
    };
    // The verifier admits no recursion.
    let below = function.calls.iter().map(|call| deepest(functions, *call));
    let (depth, mut chain) = below.max().unwrap_or_default();
    chain.insert(0, function.stack);
    (
        depth + function.stack.max(1).next_multiple_of(ROUNDED_TO),
        chain,
    )
}

#[test]
fn no_chain_of_calls_takes_more_stack_than_old_kernels_admit() -> Result<()> {
    for object in ["ebpf", "ebpf-legacy"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../target")
            .join(object)
            .join("bpfel-unknown-none/release/lb-ebpf");
        let bytes = std::fs::read(&path)
            .with_context(|| format!("no {}: run `cargo xtask build --ebpf`", path.display()))?;
        let mut object = Object::parse(&bytes)?;
        let text = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object.relocate_calls(&text)?;
        ensure!(object.programs.len() >= 14, "programs are missing");
        for (name, program) in &object.programs {
            let linked = &object.functions[&program.function_key()].instructions;
            let functions = functions(linked)?;
            let (depth, chain) = deepest(&functions, 0);
            ensure!(
                depth <= LIMIT,
                "{name} of {} takes {depth} bytes of stack, and kernels before 6.7 admit {LIMIT}: \
                 a chain of functions with {chain:?}",
                path.display()
            );
        }
        let called = &object.functions[&object.programs["tc_ingress"].function_key()];
        ensure!(
            functions(&called.instructions)?.len() > 5,
            "tc_ingress calls nothing: this test looks at the wrong thing"
        );
    }
    Ok(())
}
