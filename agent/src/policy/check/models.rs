//! What `[[upstream]]` says of models.

use super::{At, Checker, ProtocolId, file};
use crate::policy::{Budget, ModelSpec, Price};

/// Highest amount that is taken: beyond it, sums would not be exact.
const AMOUNT_MAX: f64 = 1e9;

impl Checker<'_> {
    pub(super) fn models(&mut self, protocol: ProtocolId, upstream: &file::Upstream) -> ModelSpec {
        let keys = [
            ("price", upstream.price.first().map(|at| &at.span)),
            ("session_budget", upstream.session_budget.as_ref().map(|at| &at.span)),
            ("workload_budget", upstream.workload_budget.as_ref().map(|at| &at.span)),
            ("injection", upstream.injection.as_ref().map(|at| &at.span)),
        ];
        for (key, span) in keys {
            if let Some(span) = span.filter(|_| protocol != ProtocolId::Llm) {
                self.hinted(span, format!("`{key}` means nothing with `{protocol}`"), "it is for `llm`");
            }
        }
        let prices: Vec<Price> = upstream.price.iter().filter_map(|at| self.price(&at.value)).collect();
        let spec = ModelSpec {
            session: upstream.session_budget.as_ref().map(|at| self.budget(at)),
            workload: upstream.workload_budget.as_ref().map(|at| self.budget(at)),
            injection: upstream.injection.as_ref().map(|at| at.value).unwrap_or_default(),
            prices,
        };
        let limited = [&upstream.session_budget, &upstream.workload_budget].into_iter().flatten();
        if let Some(cost) = limited.filter_map(|at| at.value.cost.as_ref()).next().filter(|_| upstream.price.is_empty())
        {
            let help = "such as `price = [{ model = \"gpt-*\", input = 2.5, output = 10.0 }]`, for a million tokens";
            self.hinted(&cost.span, "a budget of money needs a `price`", help);
        }
        spec
    }

    fn price(&mut self, price: &file::Price) -> Option<Price> {
        let model = self.glob(&price.model, '/', "pattern of a model");
        let [input, output] = [&price.input, &price.output].map(|amount| self.amount(amount));
        Some(Price { model: model?, input, output })
    }

    fn budget(&mut self, budget: &At<file::Budget>) -> Budget {
        let At { span, value: budget } = budget;
        if budget.requests.is_none() && budget.tokens.is_none() && budget.cost.is_none() {
            self.hinted(span, "this budget limits nothing", "it needs `requests`, `tokens` or `cost`");
        }
        Budget {
            requests: budget.requests.as_ref().map(|at| at.value),
            tokens: budget.tokens.as_ref().map(|at| at.value),
            cost: budget.cost.as_ref().map(|cost| self.amount(cost)),
            per: budget.per.map(|per| per.0),
        }
    }

    /// Millionths.
    fn amount(&mut self, amount: &At<f64>) -> u64 {
        if !(0.0..=AMOUNT_MAX).contains(&amount.value) {
            self.error(&amount.span, format!("an amount is from 0 to {AMOUNT_MAX}"));
            return 0;
        }
        (amount.value * 1e6).round() as u64
    }
}
