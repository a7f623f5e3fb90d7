"""Sample a network for scikit-learn's digits, read what the run says of itself, and predict."""

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastsmc as fs

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)

post = fs.Posterior(fs.MLP([64, 16, 10]), prior=fs.Normal(0.5), likelihood="categorical")
result = fs.SMC(post, num_particles=16).run(x_train, y_train)

print(result.evaluate(x_test, y_test))
print(f"log evidence {result.log_evidence:.1f}, ESS {result.ess:.1f} of 16")
for sentence in result.warnings:
    print("warning:", sentence)

proba = result.predict_proba(x_test[:3])  # [3, 10], averaged over the particles
print("most probable:", result.predict(x_test[:3]), "with", proba.max(axis=1).round(2), "true:", y_test[:3])
