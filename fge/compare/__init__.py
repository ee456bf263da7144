"""Methods at equal budgets: plan, runner, statistics, tables, verdict."""
