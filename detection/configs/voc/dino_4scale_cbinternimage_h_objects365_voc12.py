"""DINO with CB-InternImage-H on VOC 2007 and 2012, tested on VOC 2012 test. Released: mAP 97.2 by VOC's server.

VOC keeps the annotations of this test set. `test.py` writes the result files that its server takes, and the mean
average precision means something only where the annotations are there.
"""

_base_ = "./dino_4scale_cbinternimage_h_objects365_voc07.py"

custom_imports = dict(imports=["internimage.mm", "detection.datasets"], allow_failed_imports=False)

test_dataloader = dict(
    dataset=dict(
        type="VOCTestDataset",
        ann_file="VOC2012test/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2012test/"),
    )
)
test_evaluator = [
    dict(type="VOCMetric", metric="mAP", eval_mode="area"),
    dict(type="VOCResultFiles", out_dir="work_dirs/voc2012_results"),
]
