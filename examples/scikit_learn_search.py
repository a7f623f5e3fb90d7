"""Widths and priors by scikit-learn's grid search; a regression that learns its noise, from data that arrive."""

import numpy as np
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV

import fastsmc as fs

x, y = load_iris(return_X_y=True, as_frame=True)
search = GridSearchCV(
    fs.SMCClassifier(num_particles=16, random_state=0),
    {"hidden_layer_sizes": [(), (8,)], "prior_scale": [0.3, 1.0]},
    scoring="neg_log_loss",
    cv=3,
)
search.fit(x, y)
print(search.best_params_, search.best_score_)

x, y = load_diabetes(return_X_y=True)
regressor = fs.SMCRegressor(hidden_layer_sizes=(8,), num_particles=16, random_state=0)
for rows in np.array_split(np.arange(len(x)), 2):
    regressor.partial_fit(x[rows], y[rows])
    print(f"log evidence {regressor.log_evidence_:.1f} after rows up to {rows[-1]}")
mean, deviation = regressor.predict(x, return_std=True)
print("within two deviations:", np.mean(np.abs(y - mean) < 2 * deviation))
