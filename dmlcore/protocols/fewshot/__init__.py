"""Adapted deep embeddings: few-shot transfer from source to target classes by six models on one network, and by any loss.

`classes` reads which classes are meant, `tasks` draws source, support and test samples, `arms` says what is compared, `budgets`
how long it may train, `networks` what with, `objectives` how each kind of arm learns, scores and predicts, `fitting` is the
loop with its stopping rule, `cell` puts them together for one task, `grid` makes the cells; `analysis`, `report` and
`curves` say what came out.

Source: Scott, Ridgeway, Mozer, "Adapted Deep Embeddings: A Synthesis of Methods for k-Shot Inductive Transfer Learning",
NeurIPS 2018.
"""
