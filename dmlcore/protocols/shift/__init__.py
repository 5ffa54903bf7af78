"""Out-of-distribution shift: training on splits of growing difficulty, few-shot adaptation, one number and a report.

Source: Milbich, Roth, Sinha, Schmidt, Ghassemi, Ommer, "Characterizing Generalization under Out-Of-Distribution Shifts in Deep
Metric Learning", NeurIPS 2021 (ooDML).
"""
