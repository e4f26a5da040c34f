//! What a person types and reads: the command line, tables on a terminal. Nothing here decides how
//! traffic is balanced.

pub mod args;
pub mod check;
mod columns;
mod flags;
pub mod presence;
pub mod privileges;
pub mod reference;
pub mod run;
pub mod services;
pub mod status;
mod troubles;
pub mod values;
