//! Operations on a flow table as plain bytes, so that a test can run the same ones in the kernel and
//! on the host. Nothing but tests uses them.

use super::{
    Control, Flow, FlowHandle, Flows, Kind, NewFlow, Record, Refused, SnatAddressIndex, SnatEnd,
    WORDS,
};
use crate::addr::{Endpoint, Tick};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a step does.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Op(pub u32);

impl Op {
    /// Ends the script.
    pub const END: Self = Self(0);
    /// [`Flows::by_frontend`].
    pub const BY_FRONTEND: Self = Self(1);
    /// [`Flows::by_backend`].
    pub const BY_BACKEND: Self = Self(2);
    /// [`Flows::by_alias`].
    pub const BY_ALIAS: Self = Self(3);
    /// [`Flows::insert`].
    pub const INSERT: Self = Self(4);
    /// [`Flows::attach_snat`]: `words` is the flow, `other` the SNAT end's and backend's record.
    pub const ATTACH: Self = Self(5);
    /// [`Flows::note`].
    pub const NOTE: Self = Self(6);
    /// [`Flows::remove`].
    pub const REMOVE: Self = Self(7);
}

/// Answer codes of a step.
pub struct Answer;

impl Answer {
    /// There is a flow: it replaced `words`.
    pub const FLOW: u32 = 1;
    /// There is none, or nothing to say.
    pub const NONE: u32 = 2;
    /// [`Refused::Full`].
    pub const FULL: u32 = 3;
    /// [`Refused::Busy`].
    pub const BUSY: u32 = 4;
    /// [`Refused::Taken`].
    pub const TAKEN: u32 = 5;
}

/// One operation with its arguments; running it puts the answer in their place.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// An [`Answer`].
    pub answer: u32,
    /// The time.
    pub now: Tick,
    /// State bits of a note or an insert; of an attachment, not zero under pressure.
    pub state: u16,
    /// SNAT address index of an attachment.
    pub address: u16,
    /// A [`Record`]: the flow or the ends.
    pub words: [u64; WORDS],
    /// The SNAT end (address, port) and the backend's end of an attachment.
    pub other: [u64; 5],
}

impl Step {
    /// A step on this record.
    pub const fn new(op: Op, record: Record, now: Tick) -> Self {
        Self {
            op,
            answer: 0,
            now,
            state: 0,
            address: 0,
            words: record.words,
            other: [0; 5],
        }
    }

    /// Runs the step and replaces its arguments by the answer.
    #[inline(always)]
    pub fn run(&mut self, flows: &impl Flows) {
        let record = Record { words: self.words };
        let (client, end, protocol) = (record.client(), record.frontend(), record.protocol());
        let found = |flow: Option<Flow>| flow.ok_or(Refused::Full);
        let result = match self.op {
            Op::BY_FRONTEND => found(flows.by_frontend(&client, &end, protocol)),
            Op::BY_BACKEND => found(flows.by_backend(&client, &end, protocol)),
            Op::BY_ALIAS => found(flows.by_alias(&client, &end, protocol)),
            Op::INSERT => {
                let new = NewFlow {
                    client,
                    frontend: end,
                    protocol,
                    backend: record.backend(),
                    state: self.state,
                };
                flows.insert(&new, self.now)
            }
            Op::ATTACH => {
                let other = Record {
                    words: [
                        0,
                        0,
                        self.other[0],
                        self.other[1],
                        self.other[2],
                        self.other[3],
                        self.other[4],
                        0,
                    ],
                };
                let (snat, backend): (Endpoint, Endpoint) = (other.client(), other.frontend());
                let snat = SnatEnd {
                    end: snat,
                    address: SnatAddressIndex(u32::from(self.address)),
                    pressure: self.state != 0,
                };
                flows.attach_snat(&record.flow(), &snat, &backend, protocol, self.now)
            }
            Op::NOTE => {
                flows.note(&record.flow(), self.state, self.now);
                Err(Refused::Full)
            }
            Op::REMOVE => {
                flows.remove(&record.flow());
                Err(Refused::Full)
            }
            _ => return,
        };
        let is_change = self.op == Op::INSERT || self.op == Op::ATTACH;
        self.answer = match result {
            Ok(flow) => {
                let FlowHandle { bucket, version } = flow.handle;
                let control = Control::new(Kind::LIVE, flow.state, version, flow.seen);
                self.words = Record::of_flow(&flow.client, &flow.frontend, protocol, flow.backend)
                    .with_control(control)
                    .in_bucket(bucket)
                    .with_snat(flow.snat_port, flow.snat_address)
                    .words;
                Answer::FLOW
            }
            Err(Refused::Full) if is_change => Answer::FULL,
            Err(Refused::Full) => Answer::NONE,
            Err(Refused::Busy) => Answer::BUSY,
            Err(Refused::Taken) => Answer::TAKEN,
        };
    }
}
