//! CPU time per connection, end to end.

use crate::report::{Figure, Goal, Section};
use anyhow::Result;
use lb_tests::endtoend::{self, Effort};

/// What a path may cost, as a ratio to the direct address of the same pod with nothing attached.
const LIMITS: [(&str, f64); 6] = [
    ("pod to ClusterIP", 1.05),
    ("outside to node port, backend here", 1.15),
    ("outside to node port, backend on another node", 1.25),
    ("pod to pod, direct", 1.03),
    ("outside to near pod, direct", 1.03),
    ("outside to far pod, direct", 1.03),
];

/// Measures every path at 1 and at many services.
pub(crate) fn measure(effort: Effort) -> Result<Section> {
    let mut section = Section::new("connections", "CPU time per connection, ns", "ratio");
    for row in endtoend::run(effort)? {
        let name = format!("{}, services: {}", row.path, row.attached);
        #[expect(
            clippy::cast_precision_loss,
            reason = "nanoseconds fit a double's mantissa"
        )]
        let rounds = row.nanoseconds.iter().map(|time| *time as f64).collect();
        let mut figure = Figure::new(&name, rounds, 0.0);
        figure.net = row.ratio;
        section.figures.push(figure);
        if row.attached == "none" {
            continue;
        }
        if let Some((_, limit)) = LIMITS.iter().find(|(path, _)| *path == row.path) {
            section.goals.push(Goal::new(&name, row.ratio, *limit, "×"));
        }
    }
    Ok(section)
}
