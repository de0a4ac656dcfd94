"""LcGAN 4.1: precision and recall "by only accounting for each prediction that passes certain thresholds", pixel by
pixel. "A false positive detection with less than 200 pixels area and a true positive detection where DSC score is less
than .25 are not included."""


def detections(predictions, truths, classes, smallest=200, lowest=0.25):
    """(true positives, false positives, false negatives); an ignored prediction is none, its lesion is missed."""
    found = wrong = missed = 0
    for prediction, truth in zip(predictions, truths, strict=True):
        for label in classes:
            common = predicted = true = 0
            for row, true_row in zip(prediction, truth, strict=True):
                for value, true_value in zip(row, true_row, strict=True):
                    common += value == label and true_value == label
                    predicted += value == label
                    true += true_value == label
            if true == 0:
                wrong += predicted > 0 and predicted >= smallest
            elif predicted > 0 and 2 * common / (predicted + true) >= lowest:
                found += 1
            else:
                missed += 1
    return found, wrong, missed
