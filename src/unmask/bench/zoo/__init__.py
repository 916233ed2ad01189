"""The zoo: base models, every variant trained from them, their curves of accuracy against parallelism, and what is
claimed of them, from one folder of YAML files.

    unmask zoo --out runs/zoo --results bench/results

- `plan`: what is trained, measured and claimed, read from configs/zoo;
- `store`: the folder that a run fills, and what of it is done already;
- `work`: one job (training, distilling, measuring), in a process of its own;
- `jobs`: several of them at a time, each as soon as what it needs is there;
- `measure`: the points of a curve; `claims`: what they say of the bars; `report`, `plot`: table, JSON and figures.
"""
