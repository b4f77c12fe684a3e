//! Pools of processors.

use super::answer::{Answer, CheckContext};
use crate::need::Severity;

pub(super) fn processors(
    pool: Option<&str>,
    of_each: &[Vec<u32>],
    around: CheckContext<'_>,
) -> Answer {
    let shown = pool.unwrap_or("Pool-0");
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("which processors the pool {shown} has"));
    };
    let pools = toolstack.pools().unwrap_or_default();
    let number = pools.iter().find(|(number, name)| number == shown || name == shown);
    // One that is not there is told of by itself.
    let Some(number) = number.and_then(|(number, _)| number.parse().ok()) else {
        return Answer::There;
    };
    match toolstack.pool_processors(number) {
        Err(error) => Answer::Trouble(Severity::Missing, error.to_string()),
        Ok(has) => Answer::missing(unbound(shown, of_each, &has)),
    }
}

fn unbound(pool: &str, of_each: &[Vec<u32>], has: &[u32]) -> Option<String> {
    let list = |numbers: &[u32], last: &str| {
        let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        words.join(last)
    };
    let bound = of_each.iter().find(|bound| !bound.iter().any(|number| has.contains(number)))?;
    let has = match has {
        [] => "none".to_owned(),
        has => format!("only {}", list(has, ", ")),
    };
    Some(format!(
        "it is bound to processor {} (cpus=), and the pool {pool} has {has}",
        list(bound, " or ")
    ))
}

pub(super) fn pool(name: &str, around: CheckContext<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether the processor pool {name} is there"));
    };
    match toolstack.pools() {
        Err(error) => Answer::Trouble(Severity::Missing, format!("the processor pools: {error}")),
        Ok(pools) => {
            let there = pools.iter().any(|(number, its)| number == name || its == name);
            Answer::missing((!there).then(|| format!("the processor pool {name} does not exist")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_bound_to_processors_that_its_pool_has() {
        assert_eq!(unbound("fast", &[vec![1], vec![2, 3]], &[1, 3]), None);
        assert_eq!(unbound("fast", &[], &[]), None);
        let why = unbound("fast", &[vec![0, 1], vec![2, 3]], &[0, 1]).unwrap();
        assert_eq!(why, "it is bound to processor 2 or 3 (cpus=), and the pool fast has only 0, 1");
        let why = unbound("fast", &[vec![1]], &[]).unwrap();
        assert_eq!(why, "it is bound to processor 1 (cpus=), and the pool fast has none");
    }
}
