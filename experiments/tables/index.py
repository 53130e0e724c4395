"""Every table, by its name on the command line."""

from experiments.tables import (
    best,
    branches,
    deep,
    depth,
    exits,
    methods,
    networks,
    rates,
    repeats,
    study,
)

TABLES = {
    table.name.removeprefix("table"): table
    for table in (
        *(depth.TABLE, methods.TABLE, *repeats.TABLES, *deep.TABLES),
        *(branches.TABLE, study.TABLE, rates.TABLE, best.TABLE),
        *(networks.TABLE, exits.TABLE),
    )
}
