"""Out-of-distribution shift: building splits of growing difficulty, training on them, few-shot adaptation, one number and a
report. Reading the splits that others published is here as well.

Source: Milbich, Roth, Sinha, Schmidt, Ghassemi, Ommer, "Characterizing Generalization under Out-Of-Distribution Shifts in Deep
Metric Learning", NeurIPS 2021 (ooDML).
"""
